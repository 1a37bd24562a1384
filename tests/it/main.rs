//! The system tests; one subject a file.

mod config;
