package services.catalog

import data.shop

allow contains "shop-browses-products" if {
	shop.caller in {"web", "orders"}
	shop.reading
	input.request.segments[0] == "products"
}

# An order takes from the stock. Prices are not its business.
allow contains "orders-takes-stock" if {
	shop.caller == "orders"
	input.request.method == "PUT"
	["products", _, "stock"] = input.request.segments
}
