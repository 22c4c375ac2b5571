"""What runs on a node for one attempt: a guard that ends everything, an agent that starts everything, a fork server.

`guard`, `agent`, `forkserver` and `forkclient` are scripts as well as modules: they use the standard library only, so
that any interpreter can run them before anything is installed, and none imports another. `janitor` runs in the
controller, for the case that a guard was killed.
"""
