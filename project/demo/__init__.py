"""`manage.py demo`: the whole story on a throw-away database, with the receiving side to check it against."""
