"""One page of HTML about runs, complete in itself: `rankwise report`."""
