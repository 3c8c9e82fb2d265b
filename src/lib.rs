//! switchover: a load balancer that replaces the application behind it, under load, without a failed request.
//!
//! Two ways lead through it.
//!
//! **A config edit.** [`watch`], [`signals`] and [`admin`] send a [`controller::Command`] to the [`controller`], the only
//! writer. It reads the file ([`config::load`]), refuses what is wrong, compares with what runs, makes the peers that are new
//! ([`pool::Peer`]), has them proven ([`pool::probe`]), stores a new [`snapshot::Snapshot`], closes the peers that left and waits
//! for their last [`pool::Lease`].
//!
//! **A request.** [`clients`] accepts it; [`proxy`] loads the snapshot once, finds the service ([`route`]), picks a peer and
//! leases it ([`pool::Pool::pick`]), forwards it, tries again where that is safe, counts it ([`metrics`]), and gives the lease
//! back when it is dropped, on every way out.
//!
//! [`server`] puts all of this together, [`cli`] is what people type, [`status`] what both sides of the admin face say.
//! `docs/architecture.md` has the pictures.

pub mod access_log;
pub mod acme;
pub mod admin;
pub mod certificate;
pub mod cli;
pub mod clients;
pub mod config;
pub mod controller;
pub mod demo;
pub mod descriptors;
pub mod metrics;
pub mod pool;
pub mod preflight;
pub mod proxy;
pub mod route;
pub mod server;
pub mod signals;
pub mod snapshot;
pub mod status;
pub mod supervisor;
pub mod tasks;
pub mod watch;
