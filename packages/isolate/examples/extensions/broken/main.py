"""Asks for a package that its manifest does not list."""

import a_package_that_is_not_there

VALUE = a_package_that_is_not_there.VALUE
