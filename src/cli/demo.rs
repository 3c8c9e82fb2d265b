#[derive(clap::Args)] pub(super) struct DemoArgs {}
#[derive(clap::Args)] pub(super) struct DemoAppArgs {}
pub(super) fn run(_: DemoArgs) -> std::process::ExitCode { todo!() }
pub(super) fn run_app(_: DemoAppArgs) -> std::process::ExitCode { todo!() }
