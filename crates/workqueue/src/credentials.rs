//! The credentials of a connection.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use async_nats::{Auth, AuthError, ServerAddr};
use nkeys::KeyPair;
use percent_encoding::percent_decode_str;

use crate::connect_error::{ConnectError, setting};
use crate::settings::NatsSettings;

/// The kind of credentials that the settings select. Files are read at each connect, because expiring credentials are
/// replaced while a service runs.
#[derive(Clone)]
pub(crate) enum Credentials {
    /// A file with a JWT and the seed of its key.
    File(PathBuf),
    /// A file with the seed of an nkey.
    Nkey(PathBuf),
    Token(String),
    User {
        name: String,
        password: String,
    },
    None,
}

impl Credentials {
    /// The credentials of the settings, or else those in an address.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, or is not of its kind.
    pub(crate) fn new(
        settings: &NatsSettings,
        servers: &[ServerAddr],
    ) -> Result<Self, ConnectError> {
        let NatsSettings { nats_creds, nats_nkey, nats_token, nats_user, nats_password, .. } =
            settings;
        if nats_password.is_some() && nats_user.is_none() {
            return Err(ConnectError::Setting {
                setting: "NATS_PASSWORD",
                value: "***".to_owned(),
                reason: "NATS_USER has to name its user".to_owned(),
            });
        }
        if let Some(file) = nats_creds {
            read_creds(file).map_err(|reason| setting("NATS_CREDS", file, reason))?;
            return Ok(Self::File(file.clone()));
        }
        if let Some(file) = nats_nkey {
            read_nkey(file).map_err(|reason| setting("NATS_NKEY", file, reason))?;
            return Ok(Self::Nkey(file.clone()));
        }
        if let Some(token) = nats_token {
            return Ok(Self::Token(token.clone()));
        }
        if let Some(name) = nats_user {
            let password = nats_password.clone().unwrap_or_default();
            return Ok(Self::User { name: name.clone(), password });
        }
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let users = servers.iter().map(|server| Some((server.username()?, server.password())));
        let mut users = users.flatten();
        let user = users.next();
        // The client does not say which of its brokers asks who connects.
        if users.any(|other| Some(other) != user) {
            return Err(ConnectError::Setting {
                setting: "NATS_URL",
                value: "***".to_owned(),
                reason:
                    "its addresses have different users, and a client has one: write the same into \
                         each, or into NATS_USER and NATS_PASSWORD"
                        .to_owned(),
            });
        }
        Ok(match user {
            Some((name, Some(password))) => {
                Self::User { name: decoded(name), password: decoded(password) }
            }
            // As nats-server's own tools read an address with one part.
            Some((token, None)) => Self::Token(decoded(token)),
            None => Self::None,
        })
    }

    /// The authentication for a broker that has sent this nonce.
    pub(crate) fn prove(&self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let mut auth = Auth::new();
        let sign = |key: &KeyPair| key.sign(nonce).map_err(AuthError::new);
        match self {
            Self::File(file) => {
                let (jwt, key) = read_creds(file).map_err(AuthError::new)?;
                auth.jwt = Some(jwt);
                auth.signature = Some(sign(&key)?);
            }
            Self::Nkey(file) => {
                let key = read_nkey(file).map_err(AuthError::new)?;
                auth.nkey = Some(key.public_key());
                auth.signature = Some(sign(&key)?);
            }
            Self::Token(token) => auth.token = Some(token.clone()),
            Self::User { name, password } => {
                auth.username = Some(name.clone());
                auth.password = Some(password.clone());
            }
            Self::None => {}
        }
        Ok(auth)
    }
}

/// The user, without secrets.
impl fmt::Display for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(formatter, "the user of {}", file.display()),
            Self::Nkey(file) => write!(formatter, "the nkey of {}", file.display()),
            Self::Token(_) => formatter.write_str("the token"),
            Self::User { name, .. } => write!(formatter, "user '{name}'"),
            Self::None => formatter.write_str("a client without credentials"),
        }
    }
}

fn read_creds(file: &Path) -> Result<(String, KeyPair), String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    let block = |title: &str| {
        let (_, rest) = text.split_once(title)?;
        rest.lines().skip(1).map(str::trim).find(|line| !line.is_empty())
    };
    let jwt = block("BEGIN NATS USER JWT").ok_or("it has no user JWT")?;
    let seed = block("BEGIN USER NKEY SEED").ok_or("it has no seed of a user's nkey")?;
    Ok((jwt.to_owned(), key(seed)?))
}

fn read_nkey(file: &Path) -> Result<KeyPair, String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
    key(seed.ok_or("it has no seed of a user's nkey, which begins with SU")?)
}

/// The key of a seed. No error shows the seed.
fn key(seed: &str) -> Result<KeyPair, String> {
    KeyPair::from_seed(seed).map_err(|_| "its seed is not one of an nkey".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_url(url: &str) -> Credentials {
        Credentials::new(&NatsSettings::at(url), &[url.parse().unwrap()]).unwrap()
    }

    #[test]
    fn user_and_password_of_an_address_are_decoded() {
        let auth = of_url("nats://al%20ice:s%2F3%23%40@one").prove(b"").unwrap();
        assert_eq!(auth.username.as_deref(), Some("al ice"));
        assert_eq!(auth.password.as_deref(), Some("s/3#@"));
        let auth = of_url("nats://s3cret@one").prove(b"").unwrap();
        assert_eq!((auth.token.as_deref(), auth.username), (Some("s3cret"), None));
    }

    #[test]
    fn addresses_with_different_users_are_refused() {
        let of = |urls: [&str; 2]| {
            let servers = urls.map(|url| url.parse().unwrap());
            Credentials::new(&NatsSettings::at(urls.join(",")), &servers)
        };
        assert!(of(["nats://bob:s3cret@one", "nats://bob:s3cret@two"]).is_ok());
        assert!(of(["nats://bob:s3cret@one", "nats://two"]).is_ok());
        let error = of(["nats://bob:s3cret@one", "nats://bob:other@two"]).err().unwrap();
        let error = error.to_string();
        assert!(error.contains("different users") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn settings_count_before_an_address() {
        let settings = NatsSettings {
            nats_user: Some("bob".to_owned()),
            ..NatsSettings::at("nats://alice:s3cret@one")
        };
        let servers = [settings.nats_url.parse().unwrap()];
        let credentials = Credentials::new(&settings, &servers).unwrap();
        assert_eq!(credentials.to_string(), "user 'bob'");
    }

    #[test]
    fn files_are_read_at_each_connect_and_their_seeds_kept_secret() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("user.nk");
        let settings =
            NatsSettings { nats_nkey: Some(file.clone()), ..NatsSettings::at("nats://one") };
        let keys = [KeyPair::new_user(), KeyPair::new_user()];
        fs::write(&file, keys[0].seed().unwrap()).unwrap();
        let credentials = Credentials::new(&settings, &[]).unwrap();
        for key in keys {
            fs::write(&file, key.seed().unwrap()).unwrap();
            let auth = credentials.prove(b"nonce").unwrap();
            assert_eq!(auth.nkey, Some(key.public_key()));
            assert_eq!(auth.signature.unwrap(), key.sign(b"nonce").unwrap());
        }
        let creds = |key: &KeyPair, jwt: &str| {
            let seed = key.seed().unwrap();
            format!(
                "-----BEGIN NATS USER JWT-----\n{jwt}\n-----BEGIN USER NKEY SEED-----\n{seed}\n"
            )
        };
        let of_creds =
            NatsSettings { nats_creds: Some(file.clone()), ..NatsSettings::at("nats://one") };
        fs::write(&file, creds(&KeyPair::new_user(), "old")).unwrap();
        let credentials = Credentials::new(&of_creds, &[]).unwrap();
        let key = KeyPair::new_user();
        fs::write(&file, creds(&key, "new")).unwrap();
        let auth = credentials.prove(b"nonce").unwrap();
        assert_eq!(auth.jwt.as_deref(), Some("new"));
        assert_eq!(auth.signature.unwrap(), key.sign(b"nonce").unwrap());
        fs::write(&file, "SUNSENSE").unwrap();
        let Err(error) = Credentials::new(&settings, &[]) else { panic!("it is no seed") };
        let error = error.to_string();
        assert!(error.starts_with("NATS_NKEY is ") && !error.contains("SUNSENSE"), "{error}");
    }
}
