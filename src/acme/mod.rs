//! Obtains and renews certificates over ACME (RFC 8555), with `http-01` challenges.
//!
//! The composition root creates one [`Acme`] per certificate, and spawns [`Acme::keep`] once the listeners accept connections.
//! [`Store`] keeps the account and the certificate across restarts; the listeners' TLS reads the certificate from it as it reads
//! any renewed file. [`ChallengeStore`] holds the challenge responses that the proxy serves while an order is in progress. No
//! request waits for this module, and no failure in it ends the process.

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

/// How often the certificate's validity is checked.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// Delay after the first failure; each further failure doubles it. Authorities limit failures: Let's Encrypt allows five an hour.
const FIRST_RETRY: Duration = Duration::from_secs(15 * 60);
const LAST_RETRY: Duration = Duration::from_secs(6 * 60 * 60);
/// Time limit of one request to the authority.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The certificate of one listener.
pub struct Acme {
    config: config::Acme,
    store: Store,
    challenges: ChallengeStore,
    http: Http,
}

/// The HTTP client for the authority: ureq, which the commands use too.
#[derive(Clone)]
struct Http(Agent);

/// The challenges of one order; dropping it removes them from the store.
struct Pending<'a> {
    challenges: &'a ChallengeStore,
    tokens: Vec<String>,
}

impl Acme {
    /// Creates the store and the client; relative paths of `config` are relative to `folder`.
    ///
    /// # Errors
    /// When the store cannot be written or the authority's CA cannot be read; names the key, the file and the reason.
    pub fn new(config: config::Acme, folder: &Path, challenges: ChallengeStore) -> Result<Self, String> {
        let store = Store::new(&config, folder);
        store.create()?;
        let roots = match config.ca.as_ref().map(|ca| folder.join(ca)) {
            // Mozilla's roots, compiled in: the container image has no system store.
            None => RootCerts::WebPki,
            Some(file) => {
                let pem = config::file::read(&file, config::file::LARGEST)
                    .map_err(|e| format!("ca: {} cannot be read: {e}", file.display()))?;
                let ca = Certificate::from_pem(&pem).map_err(|e| format!("ca: {} is no certificate: {e}", file.display()))?;
                RootCerts::new_with_certs(&[ca])
            }
        };
        let tls = TlsConfig::builder().root_certs(roots).build();
        let agent = Agent::config_builder().tls_config(tls).http_status_as_error(false).timeout_global(Some(REQUEST_TIMEOUT));
        Ok(Self { config, store, challenges, http: Http(agent.build().into()) })
    }

    /// Orders the certificate, and renews it when it is due. Never returns.
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

    /// Places one order. A new certificate that is already due counts as a failure, so that a wrong clock, or an authority that
    /// issues other names, leads to growing delays instead of an endless series of orders.
    async fn renew(&self) -> Outcome<()> {
        self.obtain().await?;
        match self.due() {
            None => Ok(()),
            Some(why) => Err(format!("the certificate was issued and is due for renewal already: {why}").into()),
        }
    }

    /// The reason to order a certificate; none while the stored one is good.
    fn due(&self) -> Option<String> {
        // A certificate that cannot be read is replaced, whatever the reason.
        let metadata = match certificate::metadata(&self.store.certificate()) {
            Ok(metadata) => metadata,
            Err(why) => return Some(why),
        };
        if let Some(missing) = self.config.names.iter().find(|name| !metadata.names.contains(name)) {
            return Some(format!("it is for {}, not for {missing}", metadata.names.join(",")));
        }
        let renew = metadata.not_before + (metadata.not_after - metadata.not_before) / 3 * 2;
        let date = |seconds| DateTime::from_timestamp(seconds, 0).map_or("?".to_owned(), |at| at.format("%F %R UTC").to_string());
        let now = certificate::now();
        let late = || format!("two thirds of its time ended at {}; the clock says {}, is it right?", date(renew), date(now));
        (now >= renew).then(late)
    }

    /// Runs one order from the account to the stored certificate (RFC 8555, section 7).
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
                status => return Err(format!("the authority reports the authorization of a name as {status:?}").into()),
            }
            let mut challenge =
                authorization.challenge(ChallengeType::Http01).ok_or("the authority offers no http-01 challenge")?;
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
