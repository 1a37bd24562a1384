//! http-wasm guests in the engine itself: what each call does in each phase, and how VMs live and end.
//!
//! The expectations are the ABI's (https://http-wasm.io/http-handler-abi/), not this host's.

mod calls;
mod examples;
mod exchange;
mod fixture;
mod table;
mod tck;
mod vms;
