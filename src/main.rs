//! Arguments in, exit code out.

use std::ffi::OsString;
use std::process::ExitCode;

use drawbridge::bus::guard;

/// Messages are made on one thread and let go on another; the system's allocator is slow at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    // The helper mode of our own binary comes before anything else is read.
    if let Some((first, rest)) = args.split_first()
        && first == guard::GUARD_COMMAND
    {
        return ExitCode::from(u8::try_from(guard::guard_main(rest)).unwrap_or(2));
    }
    drawbridge::cli::main()
}
