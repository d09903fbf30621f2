"""One module a service of the contract; a method is the RPC's name in small letters with underscores."""
