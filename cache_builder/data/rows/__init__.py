"""A user's rows: the tables that hold them, read line by line, and the shapes that they come in.

    file ──tables──▶ row, with what an error calls it ──shapes──▶ Example

Nothing of a row is left out unseen: a key that a shape does not know is refused, and so is a value that is not used.
"""
