"""Models: their facts (`facts`) and the tiny one that is built here (`tiny`)."""
