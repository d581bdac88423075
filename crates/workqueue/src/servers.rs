//! The addresses of the brokers.

use async_nats::ServerAddr;

use crate::connect_error::ConnectError;
use crate::mask::{looks_secret, without_users};

/// The same address, without user and password.
pub(crate) fn without_user(server: ServerAddr) -> Result<ServerAddr, ConnectError> {
    let mut url = server.into_inner();
    let stripped = url.set_username("").and_then(|()| url.set_password(None));
    let stripped = stripped.ok().and_then(|()| ServerAddr::from_url(url).ok());
    stripped.ok_or_else(|| ConnectError::Setting {
        setting: "NATS_URL",
        value: "***".to_owned(),
        reason: "it is no address".to_owned(),
    })
}

/// The addresses of the brokers. An error shows no secret in them.
pub(crate) fn servers(urls: &str) -> Result<Vec<ServerAddr>, ConnectError> {
    const EXAMPLE: &str = "write something like nats://127.0.0.1:4222";
    let each = || urls.split(',').map(str::trim).filter(|url| !url.is_empty());
    let wrong = |reason: &str| ConnectError::Setting {
        setting: "NATS_URL",
        value: without_users(urls),
        reason: reason.to_owned(),
    };
    let parse = |url: &str| match url.parse::<ServerAddr>() {
        _ if url
            .split_once("://")
            .is_some_and(|(scheme, _)| !["nats", "tls"].contains(&scheme)) =>
        {
            Err(wrong(&format!("its scheme has to be nats or tls; {EXAMPLE}")))
        }
        Ok(server) if server.host().is_empty() => {
            Err(wrong(&format!("it names no host; {EXAMPLE}")))
        }
        Ok(_) if has_half_a_user(url) => Err(wrong(
            "it has a user without a password, or a password without a user; write both, or set NATS_USER",
        )),
        Ok(server) if looks_secret(server.host()) => {
            Err(wrong(&format!("it is a seed or a token, and no address; {EXAMPLE}")))
        }
        Ok(server) if server.port() == 0 => Err(wrong(&format!("its port is 0; {EXAMPLE}"))),
        Ok(server) => {
            let url = server.clone().into_inner();
            if !["", "/"].contains(&url.path()) || url.query().or(url.fragment()).is_some() {
                return Err(wrong(&format!("something follows its port; {EXAMPLE}")));
            }
            Ok(server)
        }
        Err(_) if url.contains('@') => Err(wrong(
            "it is no address, or its port is none; in a user or password, write / as %2F, # as %23, ? as %3F, @ as %40, and a comma as %2C",
        )),
        Err(_) => Err(wrong(&format!("it is no address, or its port is none; {EXAMPLE}"))),
    };
    if each().next().is_none() {
        return Err(wrong(&format!("it names no broker; {EXAMPLE}")));
    }
    each().map(parse).collect()
}

/// Whether an address has a colon before its host, with an empty user or password, which parsing would ignore.
fn has_half_a_user(url: &str) -> bool {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    let user = rest.rsplit_once('@').and_then(|(user, _host)| user.split_once(':'));
    user.is_some_and(|(name, password)| name.is_empty() || password.is_empty())
}

/// The brokers, without the passwords in their addresses.
pub(crate) fn display(servers: &[ServerAddr]) -> String {
    let names: Vec<String> =
        servers.iter().map(|server| format!("{}:{}", server.host(), server.port())).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_brokers_are_separated_by_commas() {
        let servers = servers("nats://one:1, two:2,").unwrap();
        assert_eq!(display(&servers), "one:1, two:2");
    }

    #[test]
    fn invalid_address_is_named() {
        let urls = [
            "",
            ",",
            "nats://",
            "http://one",
            "ws://one:1",
            "one:port",
            "one:0",
            "one:1/sub",
            "one?a",
        ];
        for url in urls {
            let error = servers(url).unwrap_err().to_string();
            let shown = without_users(url);
            assert!(error.starts_with(&format!("NATS_URL is '{shown}': ")), "{error}");
            assert!(error.ends_with("write something like nats://127.0.0.1:4222"), "{error}");
        }
    }

    #[test]
    fn half_a_user_in_an_address_is_refused() {
        for url in ["nats://:s3cret@one", "nats://alice:@one", "two,:s3cret@one:1"] {
            let error = servers(url).unwrap_err().to_string();
            assert!(error.contains("a user without a password, or"), "{error}");
            assert!(!error.contains("s3cret") && !error.contains("alice"), "{error}");
        }
        assert!(servers("nats://t0ken@one,nats://alice:s3cret:@one").is_ok());
    }

    #[test]
    fn seed_in_place_of_an_address_is_not_shown() {
        let seed = nkeys::KeyPair::new_user().seed().unwrap();
        let error = servers(&seed).unwrap_err().to_string();
        assert!(error.starts_with("NATS_URL is '***': it is a seed"), "{error}");
    }

    #[test]
    fn password_in_an_address_is_not_shown() {
        let servers = servers("nats://user:secret@one:1").unwrap();
        assert_eq!(display(&servers), "one:1");
    }

    #[test]
    fn error_shows_no_secret_of_an_address() {
        for url in
            ["nats://bob:a/b#c@one", "nats://bob:a?b@one:port", "ws://token@one", "bob:@a b@"]
        {
            let error = servers(&format!("nats://x:s3cret@two,{url}")).unwrap_err().to_string();
            // One without a scheme may be the rest of the password before it.
            let first = if url.contains("://") { "nats://***@two" } else { "***" };
            assert!(error.starts_with(&format!("NATS_URL is '{first},")), "{error}");
            for secret in ["bob", "s3cret", "a/b", "b#c", "token", "@a b"] {
                assert!(!error.contains(secret), "{error}");
            }
        }
        let error = servers("nats://bob:s3cret,t@o@one").unwrap_err().to_string();
        assert!(error.starts_with("NATS_URL is '***,***@one'"), "{error}");
    }
}
