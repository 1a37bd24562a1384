//! The system tests. One subject a file.

mod engine;
