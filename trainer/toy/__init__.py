"""The paper's Fig. 2 in a minute: a toy regression with a teacher and student that fail in different places."""
