//! The promises of the service, tested by its real binary over real sockets. One program, so that tests of
//! all files run side by side: many of them wait rather than compute.

mod clients;
mod common;
mod everyday;
mod hostile;
mod log;
mod minimal;
mod operations;
mod page;
mod proxy;
mod service;
mod store;
