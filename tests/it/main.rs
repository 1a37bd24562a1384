//! The system tests: one subject a file.

mod auth;
mod config;
mod limit;
mod store;
