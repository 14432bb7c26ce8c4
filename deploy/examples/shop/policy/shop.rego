# What the rules of all services share.
package shop

# The name of the calling service. A caller of another trust domain keeps its
# whole SPIFFE ID here, which equals no service's name.
caller := trim_prefix(input.source.id, "spiffe://shop.example/svc/")

reading if input.request.method in {"GET", "HEAD"}
