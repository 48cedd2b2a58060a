//! The running handlers of a thread, by small numbers that are used again.

/// Keeps a value for each running handler.
#[derive(Debug)]
pub(super) struct Flights<T> {
    values: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self { values: Vec::new(), free: Vec::new() }
    }
}

impl<T> Flights<T> {
    /// Adds a value, and returns its number.
    pub(super) fn insert(&mut self, value: T) -> usize {
        match self.free.pop() {
            Some(number) => {
                self.values[number] = Some(value);
                number
            }
            None => {
                self.values.push(Some(value));
                self.values.len() - 1
            }
        }
    }

    /// Removes and returns the value of this number.
    pub(super) fn remove(&mut self, number: usize) -> Option<T> {
        let value = self.values.get_mut(number)?.take()?;
        self.free.push(number);
        Some(value)
    }

    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut T> {
        self.values.get_mut(number)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.values.iter().flatten()
    }

    pub(super) fn len(&self) -> usize {
        self.values.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again() {
        let mut flights = Flights::default();
        assert_eq!([flights.insert("a"), flights.insert("b")], [0, 1]);
        assert_eq!((flights.remove(0), flights.remove(0)), (Some("a"), None));
        assert_eq!((flights.len(), flights.insert("c")), (1, 0));
        assert_eq!(flights.iter().collect::<Vec<_>>(), [&"c", &"b"]);
        assert!(!flights.is_empty());
    }
}
