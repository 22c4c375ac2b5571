"""What is wrong with the nodes that a sweep would use, before it is started.

`asked` turns a plan into what to look for, `probe` is what runs on every node, `checkup` sends it there, `checks`
judges the answers, `render` shows them. Guarantees: nothing is installed, nothing is left behind on any node or in the
store; no value of a secret is read or sent; a node that does not answer is a failed check and never a traceback.
"""
