//! The system tests: one subject a file.

mod auth;
mod limit;
mod store;
