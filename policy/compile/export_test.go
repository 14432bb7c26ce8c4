package compile

// UnderRace says that tests are ten times as slow.
const UnderRace = underRace
