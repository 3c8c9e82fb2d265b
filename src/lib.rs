//! switchover: a load balancer that replaces the application behind it, under load, without a failed request.
//!
//! Two paths lead through the code.
//!
//! **A configuration edit.** [`watch`], [`signals`] and [`admin`] send a [`controller::Command`] to the [`controller`], the only
//! writer. The controller reads the file ([`config::load`]), rejects an invalid one, compares a valid one with the running
//! configuration, creates the new peers ([`pool::Peer`]), probes them ([`pool::probe`]), stores a new [`snapshot::Snapshot`],
//! closes the old peers and waits until their last [`pool::Lease`] is released.
//!
//! **A request.** [`clients`] accepts it. [`proxy`] loads the snapshot once, finds the service ([`route`]), picks and leases a
//! peer ([`pool::Pool::pick`]), forwards the request, retries it where that is safe, and counts it ([`metrics`]). Dropping the
//! request releases the lease.
//!
//! [`server`] is the composition root, [`cli`] the command line, [`status`] the types of the admin API.
//! `docs/architecture.md` has the pictures.

pub mod access_log;
pub mod acme;
pub mod admin;
pub mod certificate;
pub mod cli;
pub mod clients;
pub mod config;
pub mod controller;
pub mod descriptors;
pub mod exchange;
pub mod hooks;
pub mod metrics;
pub mod path;
pub mod pool;
pub mod preflight;
pub mod proxy;
pub mod route;
pub mod server;
pub mod signals;
pub mod snapshot;
pub mod status;
pub mod systemd;
pub mod tasks;
pub mod token;
pub mod watch;
