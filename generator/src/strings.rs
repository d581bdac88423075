//! Makes random strings, independent of queues and the broker.

use contract::{Amount, Strings};
use rand::Rng;
use rand::distr::{Alphanumeric, SampleString};

/// Random strings of `A-Z a-z 0-9`, in the requested number and length.
pub(crate) fn make(amount: Amount, rng: &mut impl Rng) -> Strings {
    let length = usize::try_from(amount.length()).expect("a string fits into memory");
    let strings: Vec<String> =
        (0..amount.count()).map(|_| Alphanumeric.sample_string(rng, length)).collect();
    Strings::try_from(strings).expect("an amount is within the limits of the strings")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn strings_have_the_requested_count_and_length() {
        for (count, length) in [(1, 1), (3, 64), (1000, 65), (64, 1024)] {
            let strings = make(Amount::new(count, length).unwrap(), &mut rand::rng());
            assert_eq!(strings.as_slice().len(), count as usize);
            assert!(strings.as_slice().iter().all(|string| string.len() == length as usize));
        }
    }

    #[test]
    fn all_62_characters_occur() {
        let strings = make(Amount::new(64, 1024).unwrap(), &mut rand::rng());
        let characters: HashSet<char> =
            strings.as_slice().iter().flat_map(|string| string.chars()).collect();
        assert_eq!(characters.len(), 62);
    }
}
