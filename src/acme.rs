//! Certificates from an authority that gives them by itself (ACME, RFC 8555), to whom it reaches under their names.
//!
//! The composition root makes one [`Acme`] per listener that asks for it, and spawns [`Acme::keep`] once it listens. The certificate
//! with its key is one file of the store, which [`crate::clients::tls`] reads as it reads any file that is renewed; the account is
//! beside it, so that a restart asks for nothing. What the authority wants to see meanwhile is in [`Proofs`], from which
//! [`crate::proxy`] answers. Never on the way of a request, and never a reason for the process to end once it runs.

use std::{
    error::Error,
    fs,
    io::{self, Write},
    path::Path,
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use instant_acme::{
    Account, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, HttpClient, Identifier, NewAccount, NewOrder,
    OrderStatus, RetryPolicy,
};
use log::{error, info};
use tempfile::NamedTempFile;
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig},
};

use crate::{clients::tls, config, proxy::proofs::Proofs};

/// A certificate is looked at this often.
const LOOK: Duration = Duration::from_secs(60);
/// After a failure; each one doubles it. Authorities count failures, and Let's Encrypt allows five an hour.
const FIRST_RETRY: Duration = Duration::from_secs(15 * 60);
const LAST_RETRY: Duration = Duration::from_secs(6 * 60 * 60);
/// One request to the authority.
const PATIENCE: Duration = Duration::from_secs(30);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The certificate of one listener.
pub struct Acme {
    config: config::Acme,
    proofs: Proofs,
    http: Http,
}

/// The requests to an authority, by the client that the commands use as well.
#[derive(Clone)]
struct Http(Agent);

/// The proofs of one order, which nobody needs when it is over.
struct Shown<'a> {
    proofs: &'a Proofs,
    tokens: Vec<String>,
}

impl Acme {
    /// `config` with absolute paths.
    ///
    /// # Errors
    /// A store that cannot be written, or an authority's certificate that cannot be read, named with the reason.
    pub fn new(config: config::Acme, proofs: Proofs) -> Result<Self, String> {
        let folder = config.folder();
        let unwritable = |e: io::Error| format!("store: {} cannot be written: {e}", folder.display());
        fs::create_dir_all(&folder).and_then(|()| NamedTempFile::new_in(&folder).map(drop)).map_err(unwritable)?;
        let roots = match &config.ca {
            // Those that browsers know: an image has no others.
            None => RootCerts::WebPki,
            Some(file) => {
                let pem = fs::read(file).map_err(|e| format!("ca: {} cannot be read: {e}", file.display()))?;
                let ca = Certificate::from_pem(&pem).map_err(|e| format!("ca: {} is no certificate: {e}", file.display()))?;
                RootCerts::new_with_certs(&[ca])
            }
        };
        let tls = TlsConfig::builder().root_certs(roots).build();
        let agent = Agent::config_builder().tls_config(tls).http_status_as_error(false).timeout_global(Some(PATIENCE));
        Ok(Self { config, proofs, http: Http(agent.build().into()) })
    }

    /// Gets the certificate if there is none, and renews it when two thirds of its time are over, for ever.
    pub async fn keep(&self) {
        let mut retry = FIRST_RETRY;
        loop {
            let wait = if !self.is_due() {
                LOOK
            } else {
                let names = self.config.names.join(",");
                match self.obtain().await {
                    Ok(()) => {
                        info!("certificate obtained names={names} from={}", self.config.directory);
                        retry = FIRST_RETRY;
                        LOOK
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

    fn is_due(&self) -> bool {
        let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else { return false };
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        // Whatever is wrong with the one that is there, a new one is the remedy.
        let Ok(facts) = tls::facts(&self.config.file()) else { return true };
        let renew = facts.not_before + (facts.not_after - facts.not_before) / 3 * 2;
        now >= renew || !self.config.names.iter().all(|name| facts.names.contains(name))
    }

    /// Goes the whole way of an order (RFC 8555, section 7).
    async fn obtain(&self) -> Outcome<()> {
        let account = self.account().await?;
        let names: Vec<Identifier> = self.config.names.iter().cloned().map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&names)).await?;
        let mut shown = Shown { proofs: &self.proofs, tokens: Vec::new() };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                AuthorizationStatus::Valid => continue,
                status => return Err(format!("the authority calls a name {status:?}").into()),
            }
            let mut challenge = authorization.challenge(ChallengeType::Http01).ok_or("the authority offers no http-01")?;
            let proof = challenge.key_authorization().as_str().to_owned();
            shown.show(&challenge.token, proof);
            challenge.set_ready().await?;
        }
        let status = order.poll_ready(&RetryPolicy::default()).await?;
        if status != OrderStatus::Ready {
            return Err(format!("the order is {status:?}").into());
        }
        let key = order.finalize().await?;
        let chain = order.poll_certificate(&RetryPolicy::default()).await?;
        write(&self.config.file(), format!("{key}{chain}").as_bytes())?;
        Ok(())
    }

    async fn account(&self) -> Outcome<Account> {
        let file = self.config.folder().join("account.json");
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        match fs::read(&file) {
            Ok(saved) => Ok(builder.from_credentials(serde_json::from_slice(&saved)?).await?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let contact: Vec<String> = self.config.contact.iter().map(|address| format!("mailto:{address}")).collect();
                let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
                let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
                let (account, credentials) = builder.create(&new, self.config.directory.clone(), None).await?;
                write(&file, &serde_json::to_vec(&credentials)?)?;
                Ok(account)
            }
            Err(e) => Err(format!("{} cannot be read: {e}", file.display()).into()),
        }
    }
}

/// Writes a file that others see whole or not at all, and nobody else may read.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(path.parent().unwrap_or(Path::new("")))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

impl Shown<'_> {
    fn show(&mut self, token: &str, proof: String) {
        self.tokens.push(token.to_owned());
        self.proofs.show(token, proof);
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.tokens.iter().for_each(|token| self.proofs.hide(token));
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
