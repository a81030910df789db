"""The fault drill: a training killed, resumed and damaged, against one that nobody touched."""
