//! Parses the arguments, starts logging, dispatches, and turns an error into a message and an exit code.

use std::process::ExitCode;

/// mimalloc takes a fifth less CPU per request than the system allocator, and its memory does not grow with the number of
/// threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    switchover::cli::main()
}
