//! Runtimes for real: llama.cpp's own server, and a stand-in that misbehaves on demand.

// Test code outside of test functions: an unwrap here is a failed test.
#![allow(clippy::unwrap_used)]

mod bed;
mod command;
mod dialects;
mod llama;
mod restart;
