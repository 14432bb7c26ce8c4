# METADATA
# scope: package
# title: gRPC calls
# description: |
#   Undefined for a request that is not gRPC. The names of a call are
#   `input.request.grpc.service` and `input.request.grpc.method`.
package writ.grpc

# METADATA
# description: |
#   Whether the call is of this method, written `/package.Service/Method`, or of
#   any method of a service, written `/package.Service/*`.
# custom:
#   example: grpc.call("/shop.Orders/Get")
call(name) if {
	["", service, method] = split(name, "/")
	method != "*"
	service == input.request.grpc.service
	method == input.request.grpc.method
}

call(name) if {
	["", service, "*"] = split(name, "/")
	service == input.request.grpc.service
}
