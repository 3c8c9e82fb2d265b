//! Where its users are: real Spring Boot processes, and the real image in containers. `make test-deploy` builds what these need
//! (a JVM's jars, images) and runs them; they are ignored otherwise, since they take minutes.

mod acme;
mod compose;
mod grpc;
mod h2spec;
mod image;
mod jars;
mod prometheus;
mod release;
mod scan;
mod schema;
pub mod spring;
mod unit;
mod websocket;
