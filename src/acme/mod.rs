//! Certificates from an authority that issues them automatically (ACME, RFC 8555), by `http-01`.
//!
//! The composition root makes one [`Acme`] for each certificate, and spawns [`Acme::keep`] once it listens. What is kept over
//! restarts is in the [`Store`], from which the listeners' TLS reads the certificate as it reads any file that is renewed; what the
//! authority asks for meanwhile is in the [`ChallengeStore`], from which the proxy answers. Never in the way of a request, and
//! never a reason for the process to end once it runs.

mod challenges;
mod store;

pub use self::{challenges::ChallengeStore, store::Store};

use std::{error::Error, fs, io, path::Path, pin::Pin, time::Duration};

use bytes::Bytes;
use chrono::DateTime;
use http::Request;
use http_body_util::{BodyExt, Full};
use instant_acme::{
    Account, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, HttpClient, Identifier, NewAccount, NewOrder,
    OrderStatus, RetryPolicy,
};
use log::{error, info};
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig},
};

use crate::{certificate, config};

/// How often the certificate's age is compared with the clock.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// After a failure; each one doubles it. Authorities count failures, and Let's Encrypt allows five an hour.
const FIRST_RETRY: Duration = Duration::from_secs(15 * 60);
const LAST_RETRY: Duration = Duration::from_secs(6 * 60 * 60);
/// One request to the authority.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The certificate of one listener.
pub struct Acme {
    config: config::Acme,
    store: Store,
    challenges: ChallengeStore,
    http: Http,
}

/// The requests to an authority, by the client that the commands use as well.
#[derive(Clone)]
struct Http(Agent);

/// The challenges of one order, removed when it is over, however it ends.
struct Pending<'a> {
    challenges: &'a ChallengeStore,
    tokens: Vec<String>,
}

impl Acme {
    /// Relative paths of `config` are in `folder`.
    ///
    /// # Errors
    /// A store that cannot be written, or an authority's certificate that cannot be read, named with the reason.
    pub fn new(config: config::Acme, folder: &Path, challenges: ChallengeStore) -> Result<Self, String> {
        let store = Store::new(&config, folder);
        store.create()?;
        let roots = match config.ca.as_ref().map(|ca| folder.join(ca)) {
            // Those that browsers know: an image has no others.
            None => RootCerts::WebPki,
            Some(file) => {
                let pem = fs::read(&file).map_err(|e| format!("ca: {} cannot be read: {e}", file.display()))?;
                let ca = Certificate::from_pem(&pem).map_err(|e| format!("ca: {} is no certificate: {e}", file.display()))?;
                RootCerts::new_with_certs(&[ca])
            }
        };
        let tls = TlsConfig::builder().root_certs(roots).build();
        let agent = Agent::config_builder().tls_config(tls).http_status_as_error(false).timeout_global(Some(REQUEST_TIMEOUT));
        Ok(Self { config, store, challenges, http: Http(agent.build().into()) })
    }

    /// Orders the certificate when it is due, and keeps it renewed; never returns.
    pub async fn keep(&self) {
        let mut retry = FIRST_RETRY;
        loop {
            let wait = if self.due().is_none() {
                retry = FIRST_RETRY;
                POLL_INTERVAL
            } else {
                let names = self.config.names.join(",");
                match self.renew().await {
                    Ok(()) => {
                        info!("certificate obtained names={names} from={}", self.config.directory);
                        POLL_INTERVAL
                    }
                    Err(e) => {
                        let again = humantime::format_duration(retry);
                        error!("no certificate names={names} from={} reason={e} next_try={again}", self.config.directory);
                        let wait = retry;
                        retry = (retry * 2).min(LAST_RETRY);
                        wait
                    }
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// One order. An authority counts its orders as well as its failures, so a certificate that would have to be ordered again at
    /// once is a failure: otherwise a wrong clock, or an authority that issues other names, would order without an end.
    async fn renew(&self) -> Outcome<()> {
        self.obtain().await?;
        match self.due() {
            None => Ok(()),
            Some(why) => Err(format!("the certificate was issued and is due for renewal already: {why}").into()),
        }
    }

    /// Why a certificate has to be ordered; none while there is a good one.
    fn due(&self) -> Option<String> {
        // Whatever is wrong with the one that is there, a new one is the remedy.
        let facts = match certificate::facts(&self.store.certificate()) {
            Ok(facts) => facts,
            Err(why) => return Some(why),
        };
        if let Some(missing) = self.config.names.iter().find(|name| !facts.names.contains(name)) {
            return Some(format!("it is for {}, not for {missing}", facts.names.join(",")));
        }
        let renew = facts.not_before + (facts.not_after - facts.not_before) / 3 * 2;
        let date = |seconds| DateTime::from_timestamp(seconds, 0).map_or("?".to_owned(), |at| at.format("%F %R UTC").to_string());
        let now = certificate::now();
        let late = || format!("two thirds of its time ended at {}; the clock says {}, is it right?", date(renew), date(now));
        (now >= renew).then(late)
    }

    /// Goes the whole way of an order (RFC 8555, section 7).
    async fn obtain(&self) -> Outcome<()> {
        let account = self.account().await?;
        let names: Vec<Identifier> = self.config.names.iter().cloned().map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&names)).await?;
        let mut pending = Pending { challenges: &self.challenges, tokens: Vec::new() };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                AuthorizationStatus::Valid => continue,
                status => return Err(format!("the authority calls a name {status:?}").into()),
            }
            let mut challenge = authorization.challenge(ChallengeType::Http01).ok_or("the authority offers no http-01")?;
            let key_authorization = challenge.key_authorization().as_str().to_owned();
            pending.insert(&challenge.token, key_authorization);
            challenge.set_ready().await?;
        }
        let status = order.poll_ready(&RetryPolicy::default()).await?;
        if status != OrderStatus::Ready {
            return Err(format!("the order is {status:?}").into());
        }
        let key = order.finalize().await?;
        let chain = order.poll_certificate(&RetryPolicy::default()).await?;
        store::write(&self.store.certificate(), format!("{key}{chain}").as_bytes())?;
        Ok(())
    }

    async fn account(&self) -> Outcome<Account> {
        let file = self.store.account();
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        match fs::read(&file) {
            Ok(saved) => Ok(builder.from_credentials(serde_json::from_slice(&saved)?).await?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let contact: Vec<String> = self.config.contact.iter().map(|address| format!("mailto:{address}")).collect();
                let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
                let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
                let (account, credentials) = builder.create(&new, self.config.directory.clone(), None).await?;
                store::write(&file, &serde_json::to_vec(&credentials)?)?;
                Ok(account)
            }
            Err(e) => Err(format!("{} cannot be read: {e}", file.display()).into()),
        }
    }
}

impl Pending<'_> {
    fn insert(&mut self, token: &str, key_authorization: String) {
        self.tokens.push(token.to_owned());
        self.challenges.insert(token, key_authorization);
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.tokens.iter().for_each(|token| self.challenges.remove(token));
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let agent = self.0.clone();
        let other = |e: Box<dyn Error + Send + Sync>| instant_acme::Error::Other(e);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await;
            let request = Request::from_parts(parts, body.to_bytes().to_vec());
            let asked = tokio::task::spawn_blocking(move || {
                let (parts, mut body) = agent.run(request)?.into_parts();
                Ok::<_, ureq::Error>(http::Response::from_parts(parts, Full::new(Bytes::from(body.read_to_vec()?))))
            });
            let response = asked.await.map_err(|e| other(e.into()))?.map_err(|e| other(e.into()))?;
            Ok(BytesResponse::from(response))
        })
    }
}
