"""A conformance kit for KBS protocol 0.4.0: one list of scenarios, asked of a server and of a client.

It shares nothing with our broker: plain HTTP, joserfc, and the rules of Confidential Containers' own sources.
"""
