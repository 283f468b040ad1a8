//! The public side: HTTP, from the accept loop to the last byte of a stream. A connection is one
//! descriptor and one thread, from accept to close. This module depends on all others.

mod connection;
mod pages;
mod places;
mod request;
mod response;
mod routes;
mod server;
mod stream;
mod writer;

pub use routes::{Routes, Scope};
pub use server::{Server, listen};
