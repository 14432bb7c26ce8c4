package services.orders

import data.writ.spiffe

allow contains "ours" if spiffe.ours(input.source.id)
