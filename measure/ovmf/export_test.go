package ovmf

// For the tests outside the package.
var RealFirmware = firmware
