"""What can be asked of a controller.

`services/` has one class a service of the contract, with one method an RPC: transport knows them only by
the contract's descriptors (`grpc.py`), so another face (REST, GraphQL) calls the same methods. Whoever
calls is a `Caller`; what is wrong is an `ApiError`.
"""
