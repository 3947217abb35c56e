//! The event envelope: ten members in wire order, nine of them signed in sorted order (sheet, 4).
