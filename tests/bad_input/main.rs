//! Bad input, from both sides of the wire: every named kind of it against the real routes over a real
//! socket, and against the real client. Nothing of it is published, nothing of it takes the bridge down.

mod admin;
mod harness;
mod inbound;
mod paracord;
mod peer;
mod slow;
