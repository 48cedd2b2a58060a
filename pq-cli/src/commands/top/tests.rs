//! The view, drawn.
