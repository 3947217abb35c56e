//! What an event's `content` may be: limits of what comes in, types of what goes out.
