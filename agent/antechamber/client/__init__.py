"""The Relying Party: fetch Evidence, appraise it, pin the key it proves."""
