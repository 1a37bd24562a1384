//! The configuration file as serde sees it: every key, unknown ones denied.
