//! Masks a setting that can hold a secret, for an error, a log or the help.

/// The text in place of a secret.
pub(crate) const MASK: &str = "***";

/// Whether this is most likely a seed, a token or a key, and not the name of a file or a host: it has several lines,
/// or a long word with capital letters, like base32 and base64.
pub(crate) fn looks_secret(text: &str) -> bool {
    /// The seed of an nkey has 58 characters, of which some may be missing.
    const LONG: usize = 40;

    let is_long = |word: &str| {
        word.len() >= LONG && word.contains(|letter: char| letter.is_ascii_uppercase())
    };
    text.contains(char::is_control)
        || text.contains("-----BEGIN")
        || text.split(|letter: char| !letter.is_ascii_alphanumeric()).any(is_long)
}

/// The scheme, the host and the port of an address, even if it cannot be parsed.
fn without_user(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, url),
    };
    let plain = |text: &str| !text.contains(|letter: char| !letter.is_ascii_alphanumeric());
    let scheme = match scheme {
        Some(scheme) if plain(scheme) => format!("{scheme}://"),
        Some(_) => format!("{MASK}://"),
        None => String::new(),
    };
    let (user, rest) = match rest.rsplit_once('@') {
        // It belongs to an unencoded user, or to the part after the port: either may end anywhere.
        Some((before, _)) if before.contains(['/', '?', '#']) => return format!("{scheme}{MASK}"),
        Some((_, rest)) => ("***@", rest),
        None => ("", rest),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (address, more) = rest.split_at(end);
    let more = if more.len() > 1 { format!("{}{MASK}", &more[..1]) } else { more.to_owned() };
    // The address of a host in version 6 has colons of its own.
    let colon = address.find(']').unwrap_or(0);
    let colon = address[colon..].find(':').map_or(address.len(), |after| colon + after);
    let (host, port) = address.split_at(colon);
    let host = if looks_secret(host) { MASK } else { host };
    let is_number = port.chars().skip(1).all(|digit| digit.is_ascii_digit());
    let port = if is_number { port.to_owned() } else { format!(":{MASK}") };
    format!("{scheme}{user}{host}{port}{more}")
}

/// Addresses, separated by commas, without possible secrets. The text before a part that has a user and no scheme is
/// most likely the beginning of its password.
pub(crate) fn without_users(urls: &str) -> String {
    let parts: Vec<&str> = urls.split(',').map(str::trim).collect();
    let goes_on = |index: usize| {
        parts.get(index + 1).is_some_and(|next| next.contains('@') && !next.contains("://"))
    };
    let shown = |(index, part): (usize, &&str)| {
        if goes_on(index) { MASK.to_owned() } else { without_user(part) }
    };
    parts.iter().enumerate().map(shown).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed as `nsc` writes it, of no account.
    fn seed() -> String {
        nkeys::KeyPair::new_user().seed().unwrap()
    }

    #[test]
    fn address_is_shown_without_its_secrets() {
        for (url, shown) in [
            ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
            ("one:1, tls://[::1]:2/", "one:1,tls://[::1]:2/"),
            ("[::1]", "[::1]"),
            ("nats://alice:s3cret@one:1", "nats://***@one:1"),
            // The host is forgotten.
            ("nats://alice:s3cret", "nats://alice:***"),
            ("alice:s3cret", "alice:***"),
            ("alice:1:s3cret", "alice:***"),
            ("nats://alice:s3cret,nats://bob:s3cret@one:1", "nats://alice:***,nats://***@one:1"),
            ("nats://one:1?password=s3cret", "nats://one:1?***"),
            ("nats://one:1/?auth_token=s3cret", "nats://one:1/***"),
            ("nats://one#s3cret", "nats://one#***"),
            ("nats://alice:s3cret@one:1?x=s3cret", "nats://***@one:1?***"),
            ("nats://one?password=a@s3cret", "nats://***"),
            ("nats://bob:s3cret,t@o@one", "***,***@one"),
            ("alice:s3cret://one", "***://one"),
        ] {
            assert_eq!(without_users(url), shown);
        }
        assert_eq!(without_users(&seed()), MASK);
        assert_eq!(without_users(&format!("nats://{}:4222", seed())), "nats://***:4222");
    }

    #[test]
    fn names_of_files_and_hosts_are_shown() {
        for name in [
            "/run/secrets/user.nk",
            "C:\\Users\\Bob\\user.creds",
            "/var/lib/kubelet/pods/0b5f0c1e-7c1a-4d7e-9a55-1f2f3a4b5c6d/volumes/user.creds",
            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "k8s-nats-nats-abcdef0123-0123456789abcdef.elb.us-east-1.amazonaws.com",
        ] {
            assert!(!looks_secret(name), "{name}");
        }
        for secret in [&seed(), "-----BEGIN PRIVATE KEY-----", "a\nb", &seed()[..50]] {
            assert!(looks_secret(secret), "{secret}");
        }
    }
}
