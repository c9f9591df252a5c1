"""Getting files from elsewhere: transfers that go on after a break, archives unpacked safely, and how far they are."""
