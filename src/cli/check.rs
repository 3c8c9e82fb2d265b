//! `switchover check`: exactly the steps of a reload that touch nothing.

use super::{ConfigArg, Failure};
use crate::{config, descriptors};

pub(super) fn run(args: &ConfigArg) -> Result<(), Failure> {
    let (_, config) = config::load(&args.config).map_err(|e| Failure::config(&e))?;
    println!("{} is valid", args.config.display());
    for (name, service) in &config.services {
        let hosts = if service.hosts.is_empty() { "any host".to_owned() } else { service.hosts.join(", ") };
        let pools: Vec<&str> = service.pools.keys().map(String::as_str).collect();
        println!("  {name}: {hosts}, path {}, active {} of {}", service.path_prefix, service.active, pools.join(", "));
    }
    let connections = config.connections();
    println!(
        "  needs up to {} file descriptors and {} MiB for {connections} connections; an HTTP/2 connection takes up to 4 MiB",
        descriptors::needed(connections),
        config.memory_mib()
    );
    Ok(())
}
