//! An envelope in: pushed or polled, to the door.
