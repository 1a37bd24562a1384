//! The system tests: one subject a file.

mod auth;
mod config;
mod engine;
mod limit;
mod store;
