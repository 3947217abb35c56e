//! Invites, joins and leaves: asked of us, and asked of others (sheet, 5).
