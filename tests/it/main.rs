//! The system tests; one subject a file.

mod api;
mod config;
mod engine;
