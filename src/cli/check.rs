//! `switchover check`: whether `run` would start with a file, by the same steps, without starting anything.

use std::net::IpAddr;

use super::{ConfigArg, Failure};
use crate::{
    admin::client::{CallError, Client},
    config::{self, Config, LoadError},
    preflight,
};

pub(super) fn run(args: &ConfigArg) -> Result<(), Failure> {
    let (text, config) = config::load(&args.config).map_err(|e| Failure::config(&e))?;
    let found = preflight::look(&args.config, &text, &config);
    found.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    // Not a problem of the file: a switchover that is running has to listen there, and a restart frees the address first.
    if !found.in_use.is_empty() && !is_running(&config) {
        found.in_use.iter().for_each(|in_use| eprintln!("warning: {in_use}"));
    }
    if !found.problems.is_empty() {
        return Err(Failure::config(&LoadError { problems: found.problems }));
    }
    println!("{} is valid", args.config.display());
    for (name, service) in &config.services {
        let hosts = if service.hosts.is_empty() { "any host".to_owned() } else { service.hosts.join(", ") };
        let pools: Vec<&str> = service.pools.keys().map(String::as_str).collect();
        println!("  {name}: {hosts}, path {}, active {} of {}", service.path_prefix, service.active, pools.join(", "));
    }
    Ok(())
}

/// Whether a switchover answers at the admin address; one that asks for a token is one as well.
fn is_running(config: &Config) -> bool {
    let mut address = config.admin.address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]) });
    }
    matches!(Client::new(&address.to_string(), None).status(), Ok(_) | Err(CallError::Refused(_)))
}
