//! The proxy: everything that names `pingora` lives below here.

pub mod routes;
