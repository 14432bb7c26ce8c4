# A team that made a mistake.
package services.files

allow contains "everybody"
